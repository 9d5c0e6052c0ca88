"""What both sides share: study, contract, networks, losses, metrics.

Imports no Flower, opens no image, knows no site's folder.
"""
