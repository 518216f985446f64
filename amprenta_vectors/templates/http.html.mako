<%def name="rows(found)">
% for row in found:
<tr><th><code>${row[0]}</code></th>
% for cell in row[1:]:
<td>${cell}</td>
% endfor
</tr>
% endfor
</%def>
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${title}</title>
<style>
body { font: .93rem/1.45 system-ui, sans-serif; max-width: 56rem; margin: 1.5rem auto; padding: 0 1rem; color: #1c2733 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .18rem .8rem .18rem 0; border-bottom: 1px solid #dde3ea }
th { font-weight: 400 } code { font: .92em ui-monospace, monospace }
</style>
</head>
<body>
<h1>${title}</h1>
<p>The same for a program: <a href="/openapi.json">openapi.json</a>.</p>
% for each in operations:
<h2>${each.title}</h2>
<p><code>${each.method} ${each.path}</code></p>
<p>${each.text}</p>
<table>${rows(each.parameters)}</table>
% if each.body:
<p>Body: <code>${each.body}</code></p>
% endif
<p>Answer: <code>${each.answer}</code></p>
<table>${rows(each.problems)}</table>
% endfor
<h1>Objects</h1>
% for each in schemas:
<h2>${each.name}</h2>
<p>${each.text}</p>
<table>${rows(each.fields)}</table>
% endfor
</body>
</html>
