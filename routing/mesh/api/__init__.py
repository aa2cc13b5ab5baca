"""The App Mesh API, version 2019-01-25."""
