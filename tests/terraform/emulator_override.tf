# What the emulator (moto) cannot do is left out here, and nowhere else: it has no add-ons, access entries and Pod Identity
# associations of EKS. Terraform merges this file into the resources of the same names.
terraform {
  backend "local" {}
}

provider "aws" {
  s3_use_path_style           = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = false
  skip_credentials_validation = true
}

resource "aws_eks_addon" "before_nodes" {
  for_each = {}
}

resource "aws_eks_addon" "after_nodes" {
  for_each = toset([])
}

resource "aws_eks_access_entry" "admin" {
  for_each = toset([])
}

resource "aws_eks_access_policy_association" "admin" {
  for_each = toset([])
}

resource "aws_eks_pod_identity_association" "component" {
  for_each = {}
}

# It has budgets, but neither their tags nor their subscribers.
resource "aws_budgets_budget" "main" {
  for_each = {}
}

# Its clusters have no security group.
resource "aws_vpc_security_group_ingress_rule" "database" {
  referenced_security_group_id = aws_security_group.endpoints.id
}

# It forgets settings of clusters (access, upgrade policy) and invents a key pair for node groups: a second apply
# would change or replace them.
resource "aws_eks_cluster" "main" {
  lifecycle {
    ignore_changes = all
  }
}

resource "aws_eks_node_group" "cpu" {
  lifecycle {
    ignore_changes = all
  }
}

resource "aws_eks_node_group" "gpu" {
  lifecycle {
    ignore_changes = all
  }
}

# And of the database: an apply that corrects it waits for minutes.
resource "aws_db_instance" "main" {
  lifecycle {
    ignore_changes = all
  }
}
