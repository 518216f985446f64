<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${title}</title>
<style>
@page { size: A4; margin: 13mm 14mm }
html { font-size: 15px }
body { font: .93rem/1.45 system-ui, sans-serif; max-width: 56rem; margin: 1.5rem auto; padding: 0 1rem; color: #1c2733 }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.05rem; margin: 1.2rem 0 .3rem }
p { margin: .3rem 0 } .subtitle, footer, .note { color: #5a6773 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .18rem .8rem .18rem 0; border-bottom: 1px solid #dde3ea }
th { font-weight: 600; color: #43505c } .facts th { width: 9rem; white-space: nowrap }
td, p, h1 { overflow-wrap: break-word }
.right { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.time { font-variant-numeric: tabular-nums; white-space: nowrap }
code { font: .92em ui-monospace, monospace; overflow-wrap: anywhere }
.keys code { margin-right: .8em } .name { white-space: nowrap }
svg { width: 100%; height: auto }
.verdict { font-size: 1.1rem; font-weight: 600; margin: .7rem 0; padding: .55rem .8rem; border-left: .45rem solid;
  print-color-adjust: exact; -webkit-print-color-adjust: exact }
.good { background: #e4f4e8; border-color: #2e8b4a } .attention { background: #fdf2dc; border-color: #d99a1c }
.bad { background: #fbe6e4; border-color: #c0392b } .open { background: #e9eef3; border-color: #6b7c8d }
.numbers { display: grid; grid-template-columns: repeat(5, 1fr); gap: .6rem; margin: .7rem 0; padding: 0 }
.numbers div { border: 1px solid #dde3ea; border-radius: .3rem; padding: .4rem .6rem }
.numbers dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums }
.numbers dt, .numbers .beside { color: #5a6773; font-size: .85rem; font-weight: 400 }
.numbers div { display: flex; flex-direction: column } .numbers dt { order: 1 } .numbers .beside { order: 2 }
footer { margin-top: 1.2rem; font-size: .85rem }
@media print {
  html { font-size: 12px } body { margin: 0; padding: 0; max-width: none }
  section + section { break-before: page } h2 { break-after: avoid } table, svg, .numbers, .verdict { break-inside: avoid }
}
</style>
</head>
<body>
${next.body()}
% if without_plots:
<p class="note">${without_plots}</p>
% endif
<footer>
<p>All times are UTC, by the clock of the database <code>${report["database"]["name"]}</code> at
<code>${report["database"]["host"]}</code>. Made ${moment(report["made_at"])} from the JSON file of the same name,
which has more; schema ${report["schema"]}.</p>
<%block name="footer"/>
</footer>
</body>
</html>

<%def name="verdict_line(verdict)">
<p class="verdict ${verdict.tone}">${verdict.text}</p>
</%def>

<%def name="number_boxes(numbers)">
<dl class="numbers">
% for number in numbers:
<div><dt>${number.what}</dt><dd>${number.value}</dd>
% if number.beside:
<dd class="beside">${number.beside}</dd>
% endif
</div>
% endfor
</dl>
</%def>

<%def name="facts(named)">
<table class="facts">
% for name, value in named:
<tr><th>${name}</th><td>${value}</td></tr>
% endfor
</table>
</%def>

<%def name="listing(head, rows)">
<table>
<tr>
% for name in head:
<th>${name}</th>
% endfor
</tr>
% for row in rows:
<tr>
% for value in row:
<td>${value}</td>
% endfor
</tr>
% endfor
</table>
</%def>
