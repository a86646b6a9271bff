"""What only a GPU can show; run by hand (`tests/gpu/measure.sh`), for no machine of the test suite has one."""
