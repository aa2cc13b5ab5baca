"""The small upstream services behind the API gateway: device, data, analytics."""
