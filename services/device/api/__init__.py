"""The operations of the device service: one module a noun, which registers its own."""
