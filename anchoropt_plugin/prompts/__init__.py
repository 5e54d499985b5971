"""The method put on a prompt learner: where its context is, and where EOT moves."""
