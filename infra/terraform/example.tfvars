# What has to be said, and nothing more: terraform plan -var-file=example.tfvars
region             = "eu-central-1"
zones              = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
cluster_admins     = ["arn:aws:iam::111122223333:role/platform"]
budget_monthly_usd = 2000
budget_emails      = ["platform@example.com"]
