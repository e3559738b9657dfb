"""The queue: what a job may be, where it is kept, and who moves it. No torch, no ray."""
