"""The models system over HTTP: endpoints, tokens, limits on a request, problem details, and the server itself."""
