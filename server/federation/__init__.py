"""Between hospitals: Flower, certificates and startup kits."""
