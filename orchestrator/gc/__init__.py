"""`fleetune gc`: runs, checkpoints and prepared data that may go, found, decided on and removed."""
