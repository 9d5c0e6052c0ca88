"""The hospital's desk: a page for people without a terminal, served where the images are and without a network."""
