for (const hidden of all(".scripted")) hidden.hidden = false;
addEventListener("beforeprint", () => {
  for (const details of all("details.numbers:not([hidden])")) details.open = true;
});
theme.start();
tables.start();
downloads.start();
frontier.start();
pickers.start();
charts.start();
state.start();
