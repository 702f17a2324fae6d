"""The mathematics of Gaussian mixtures: layout of a datum, coordinates, E step, M step."""
