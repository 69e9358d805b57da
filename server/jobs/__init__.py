"""The kinds of job: what each checks, runs and returns."""
