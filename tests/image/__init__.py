"""The image that the Dockerfile makes, built and started."""
