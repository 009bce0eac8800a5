"""A long run of a whole cluster under churn: ``python -m tests.soak``. What should be flat is flat at the end."""
