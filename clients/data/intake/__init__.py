"""From a folder off a scanner to a site's folder, without what tells who is on the images."""
