# What must be so in every installation. Plans only.
mock_provider "aws" {
  source = "./tests/mocks"
}

run "cluster_is_private" {
  command = plan

  assert {
    condition     = aws_eks_cluster.main.vpc_config[0].endpoint_private_access && !aws_eks_cluster.main.vpc_config[0].endpoint_public_access
    error_message = "The cluster's API is reached inside the VPC only."
  }
  assert {
    condition     = aws_eks_cluster.main.encryption_config[0].resources == toset(["secrets"])
    error_message = "Secrets of the cluster are encrypted."
  }
  assert {
    condition     = length(aws_eks_cluster.main.enabled_cluster_log_types) == 5 && aws_eks_cluster.main.access_config[0].authentication_mode == "API"
    error_message = "All logs are on, and access is by entries alone."
  }
  assert {
    condition     = alltrue([for subnet in aws_subnet.public : !subnet.map_public_ip_on_launch]) && toset(keys(aws_vpc_endpoint.interface)) == toset(["ecr.api", "ecr.dkr"])
    error_message = "No public addresses; ECR is reached without NAT."
  }
}

run "data_is_encrypted" {
  command = plan

  assert {
    condition     = aws_db_instance.main.storage_encrypted && !aws_db_instance.main.publicly_accessible && aws_db_instance.main.multi_az && aws_db_instance.main.deletion_protection && aws_db_instance.main.manage_master_user_password
    error_message = "The database is encrypted, private, in two zones, protected, and its password is in no state file."
  }
  assert {
    condition     = alltrue([for name, setting in aws_s3_bucket_server_side_encryption_configuration.main : one(one(setting.rule).apply_server_side_encryption_by_default).sse_algorithm == (name == "access" ? "AES256" : "aws:kms")])
    error_message = "Buckets are encrypted with our key."
  }
  assert {
    condition     = alltrue([for block in aws_s3_bucket_public_access_block.main : block.block_public_acls && block.block_public_policy && block.ignore_public_acls && block.restrict_public_buckets]) && length(aws_s3_bucket_public_access_block.main) == length(aws_s3_bucket.main)
    error_message = "No bucket can be made public."
  }
  assert {
    condition     = alltrue([for versioning in aws_s3_bucket_versioning.main : versioning.versioning_configuration[0].status == "Enabled"])
    error_message = "Every bucket is versioned."
  }
  assert {
    condition     = alltrue([for repository in aws_ecr_repository.main : repository.image_scanning_configuration[0].scan_on_push && repository.image_tag_mutability == "IMMUTABLE"])
    error_message = "Images are scanned, and tags do not move."
  }
  assert {
    condition     = alltrue([for key in aws_kms_key.main : key.enable_key_rotation])
    error_message = "Keys are rotated."
  }
  assert {
    condition = alltrue([for template in concat(values(aws_launch_template.gpu), [aws_launch_template.cpu]) :
      template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 1 && alltrue([for disk in template.block_device_mappings : disk.ebs[0].encrypted == "true"])
    ])
    error_message = "Disks are encrypted, and pods do not reach the node's role."
  }
}

run "without_internet" {
  command = plan
  variables {
    nat = "none"
  }

  assert {
    condition     = length(aws_nat_gateway.main) + length(aws_internet_gateway.main) + length(aws_subnet.public) + length(aws_route.nat) == 0
    error_message = "Without NAT nothing leads out."
  }
  assert {
    condition     = length(setsubtract(["ec2", "ecr.api", "ecr.dkr", "eks", "eks-auth", "sts", "logs", "autoscaling"], keys(aws_vpc_endpoint.interface))) == 0
    error_message = "Without NAT, what nodes and pods call has an endpoint."
  }
}

run "one_way_out_per_zone" {
  command = plan
  variables {
    nat = "one_per_zone"
  }

  assert {
    condition     = length(aws_nat_gateway.main) == 2 && length(aws_route.nat) == 2
    error_message = "Every zone has its own NAT."
  }
}

run "alarms_on_cost" {
  command = plan

  assert {
    condition     = one(aws_budgets_budget.main["all"].cost_filter).values == tolist(["user:Project$millrace"]) && length(aws_budgets_budget.main["all"].notification) == 4
    error_message = "The budget counts what has the tag, and tells four times."
  }
}
