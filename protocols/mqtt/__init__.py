"""MQTT 3.1.1 and MQTT 5: packets and the server's side of a session."""
