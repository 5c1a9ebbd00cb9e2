"""`unils serve`: live conversations over WebSocket, and the page that holds one."""
