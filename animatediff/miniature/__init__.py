"""Training the shipped miniature: a base text-to-video model of the moving-shape world, made from nothing."""
