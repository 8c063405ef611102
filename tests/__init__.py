"""Tests of lrrunner."""
