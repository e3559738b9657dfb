"""What people read: tables, pages and plots made from values. Nothing here asks, decides or writes."""
