"""What the device service keeps beside the registry, in `device.db`: one module a table, one file for all."""
