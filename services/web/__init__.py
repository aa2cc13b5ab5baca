"""What the services behind the API gateway share: operations, passports, documents, pages, the process."""
