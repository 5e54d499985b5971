"""Both stages of AnchorOPT around a Dassl trainer, which stays as it is."""
