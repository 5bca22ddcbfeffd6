"""The report: everything that runs and conformance results tell, in one HTML file that opens offline.

    sources     folders -> runs and results, and what could not be read
    groups      runs sorted by engine, workload and load
    view        what is shown, worded; strip, headline, tables, matrix, conditions and the figures are parts of it
    matrix_page results of the suite alone, as HTML (matrix.html.j2) or Markdown
    build       view -> HTML (template.html.j2, style.css, script.js and plotly.js in one file)
"""

from pabench.report.build import write_report

__all__ = ["write_report"]
