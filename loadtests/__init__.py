"""Load tests: black boxes that know the gateway by its command line, its ports and its /status only."""
