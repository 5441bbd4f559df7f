# The smallest installation: what every test starts from. `terraform test` reads it; an installation never does.
region             = "eu-central-1"
zones              = ["eu-central-1a", "eu-central-1b"]
cluster_admins     = ["arn:aws:iam::111122223333:role/platform"]
budget_monthly_usd = 2000
budget_emails      = ["platform@example.com"]
