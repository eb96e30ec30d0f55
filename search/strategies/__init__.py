"""The strategies that come with archc; `archc.search.strategy` knows them by name."""
