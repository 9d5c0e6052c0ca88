"""What both sides share: study, contract, networks, losses, metrics. Knows no Flower, files or sites."""
