"""What is written about an entry: the commands that made it, its origin as an RO-Crate, licences and bill of
materials."""
