"""What EC2 promises, asked of any endpoint: the lab, or EC2 itself with an account that allows it."""
