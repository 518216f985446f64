<%inherit file="layout.html.mako"/>
<h1>${title}</h1>
<p class="subtitle">What the application asked, asked of a second store as well${f', since {moment(report["since"])}' if report["since"] else ""}.</p>
% for pair in pairs:
<section>
<h2>${pair.found["primary"]} answers, ${pair.found["secondary"]} is compared</h2>
${self.verdict_line(pair.verdict)}
${self.number_boxes(pair.numbers)}
${self.facts(pair.facts)}

<h2>Do they find the same?</h2>
${self.listing(["", "mean", "median", "1 in 20 below", "1 in 100 below"], pair.agreement)}
${pair.overlap_plot}
${pair.time_plot}

<h2>How fast?</h2>
${self.listing(["ms", "median", "p95", "p99"], pair.latencies)}
${pair.latency_plot}

% if pair.found["errors"]:
<h2>Queries at which ${pair.found["secondary"]} failed</h2>
${self.listing(["error", "queries"], pair.errors)}
% endif

<h2>Where they agree least</h2>
% if pair.worst:
${self.listing(["id in shadow_query", "asked at", "hits in common", "rank agreement", "missing", "filtered"], pair.worst)}
<p><code>amprenta-vectors compare --from shadow</code> says why a hit is missing.</p>
% else:
<p>Every answer is the same in the same order.</p>
% endif
</section>
% endfor
