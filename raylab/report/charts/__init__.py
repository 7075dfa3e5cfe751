"""The charts of a report. Importing what draws them imports Altair: only a report that is written does."""
