// The agreement chart of the attention viewer: stages as rows, the steps of the longer run as columns.
function agreementTable(make, rows, moments) {
  const table = make("table"), body = make("tbody"), all = rows.flatMap((r) => r.values);
  const low = Math.min(...all), high = Math.max(...all);
  for (const row of rows) {
    const line = make("tr"), head = make("th", "", row.stage);
    head.scope = "row";
    line.append(head);
    if (row.values.length) {
      row.values.forEach((value, k) => {
        const cell = make("td");
        cell.title = `${row.stage}, ${moments[k]}: cosine ${value.toFixed(3)}, Jensen-Shannon divergence ${row.divergence[k].toFixed(3)} bits`;
        cell.style.setProperty("--share", `${Math.round(100 * (high > low ? (value - low) / (high - low) : 1))}%`);
        Object.assign(cell.dataset, { stage: row.stage, step: k });
        line.append(cell);
      });
      line.append(make("td", "kv-sum", (row.values.reduce((a, b) => a + b, 0) / row.values.length).toFixed(3)));
      line.setAttribute("aria-label", `${row.stage}: ${row.values[0].toFixed(2)} at the first step, ${row.values.at(-1).toFixed(2)} at the last`);
    } else {
      const cell = make("td", "kv-none", row.absent);
      cell.colSpan = moments.length + 1;
      line.append(cell);
    }
    body.append(line);
  }
  table.append(body);
  return { table, low, high };
}
