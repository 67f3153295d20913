"""Pages of the web as notes: read politely, within limits, and only from where producers may connect to.

urls       the identity of a page, and which site it belongs to
client     one GET with redirects, pace, size and time bounded
robots     what a site allows, and how fast
links      where a page leads to
sitemaps   the pages that a site names itself
known      what is remembered of each page from run to run
crawl      from start addresses to the stream
"""
