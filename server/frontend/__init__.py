"""The front end: talks to clients, keeps the jobs and supervises the workers."""
