"""What `hai benchmark chaos` throws at hai, each at any size: kills, rot, broken storages, hostile inputs, secrets."""
