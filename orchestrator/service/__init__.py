"""What the server does, free of HTTP: jobs are let in, drivers are spoken with, questions are answered."""
