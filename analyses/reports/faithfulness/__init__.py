"""How faithful saliency maps are."""
