"""The API gateway: routes as data, authorizers, usage plans, the proxy, the WebSocket API."""
