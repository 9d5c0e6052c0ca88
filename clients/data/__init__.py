"""A site's folder: manifest, images, findings, samples."""
