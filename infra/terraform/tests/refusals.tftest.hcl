# Input that must be refused, with the variable that refuses it. Plans only.
mock_provider "aws" {
  source = "./tests/mocks"
}

run "one_zone" {
  command = plan
  variables {
    zones = ["eu-central-1a"]
  }
  expect_failures = [var.zones]
}

run "zone_of_another_region" {
  command = plan
  variables {
    zones = ["eu-central-1a", "eu-west-1b"]
  }
  expect_failures = [var.zones]
}

run "api_open_to_the_world" {
  command = plan
  variables {
    cluster_public_access_cidrs = ["0.0.0.0/0"]
  }
  expect_failures = [var.cluster_public_access_cidrs]
}

run "nobody_administers" {
  command = plan
  variables {
    cluster_admins = []
  }
  expect_failures = [var.cluster_admins]
}

run "placement_group_over_zones" {
  command = plan
  variables {
    gpu_pools = { a = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, max_nodes = 2, placement_group = true } }
  }
  expect_failures = [var.gpu_pools]
}

run "reservation_with_spot" {
  command = plan
  variables {
    gpu_pools = { a = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, max_nodes = 2, capacity = "spot", capacity_reservation_id = "cr-1" } }
  }
  expect_failures = [var.gpu_pools]
}

run "large_shared_pool" {
  command = plan
  variables {
    gpu_pools = { a = { instance_types = ["g6.xlarge"], gpus_per_node = 1, max_nodes = 5, sharing = { method = "time-slicing", pods_per_gpu = 4 } } }
  }
  expect_failures = [var.gpu_pools]
}

run "mig_without_profile" {
  command = plan
  variables {
    gpu_pools = { a = { instance_types = ["p4d.24xlarge"], gpus_per_node = 8, max_nodes = 1, sharing = { method = "mig", pods_per_gpu = 7 } } }
  }
  expect_failures = [var.gpu_pools]
}

run "one_account_with_two_roles" {
  command = plan
  variables {
    service_accounts = { mlflow = ["millrace/default"] }
  }
  expect_failures = [var.service_accounts]
}

run "backups_of_a_day" {
  command = plan
  variables {
    database_backup_days = 1
  }
  expect_failures = [var.database_backup_days]
}
