// Before the first paint: the theme that was chosen here, or the system's.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("drover-theme");
  } catch {
    // No storage: the system's theme.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
