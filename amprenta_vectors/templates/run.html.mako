<%inherit file="layout.html.mako"/>
<h1>${title}</h1>
<p class="subtitle">${moved["source"] or "a queued run"} → ${moved["target"]}</p>
${self.verdict_line(verdict)}
${self.number_boxes(numbers)}
${self.facts(facts)}

<h2>Rate over time</h2>
<p>${pace}</p>
${plot or ""}
% if waits:
<table>
<tr><th>longest waits</th><th>from</th><th class="right">for</th><th>because</th></tr>
% for wait in waits:
<tr><td class="name">${wait.kind}</td><td class="time">${wait.begin}</td><td class="right">${wait.took}</td><td>${short(wait.reason, 160)}</td></tr>
% endfor
</table>
% endif

<h2>Quarantine</h2>
% if quarantine["by_reason"]:
<table>
<tr><th>reason</th><th class="right">rows</th><th>for example</th></tr>
% for reason, rows in quarantine["by_reason"].items():
<tr><td class="name">${reason}</td><td class="right">${f"{rows:,}"}</td><td class="keys">
% for key in quarantine["first_keys"].get(reason, [])[:examples]:
<code>${short(key, 40)}</code>
% endfor
</td></tr>
% endfor
</table>
<p><code>amprenta-vectors errors ${report["run"]["id"]}</code> lists every row and why.</p>
% else:
<p>No row is quarantined.</p>
% endif
% if quarantine["resolved_since"]:
<p>${f'{quarantine["resolved_since"]:,}'} rows were quarantined and carried over later.</p>
% endif

<h2>Index</h2>
% for index in report["indexes"]:
<p><code>${index["name"]}</code> was deferred until the rows were in. It
% if index["built_at"] is None:
is <strong>not built yet</strong>: <code>amprenta-vectors index build</code> builds it.
% else:
was built at ${moment(index["built_at"])}${f', in {duration(index["build_seconds"])}' if index["build_seconds"] is not None else ""}.
% endif
</p>
<p><code>${index["definition"]}</code></p>
% endfor
% if not report["indexes"]:
<p>No index was deferred.</p>
% endif

<h2>Cost</h2>
${self.facts(cost)}

<h2>How to undo it</h2>
<table>
<tr><th>to undo</th><th>type</th><th>what stays</th></tr>
% for step in report["undo"]:
<tr><td>${step["undoes"]}</td><td><code>${step["command"]}</code></td><td>${step["stays"]}</td></tr>
% endfor
</table>

<h2>What happened</h2>
<table>
% for event in events:
<tr><td class="time">${moment(event["at"])}</td><td class="name">${event["event"].replace("_", " ")}</td><td>${short(said(event["detail"]), 160)}</td></tr>
% endfor
</table>
% if more_events:
<p>The JSON file lists ${f"{more_events:,}"} more.</p>
% endif

<%block name="footer">
<p>Versions: ${", ".join(f"{name} {number}" for name, number in report["versions"].items())}.</p>
</%block>
