"""The jobs, measurements and scores of the regret benchmark; ``README.md`` describes them."""
