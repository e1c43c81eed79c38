"""Plans as trainers' arguments and callbacks; each package is imported only when it is used."""
