// Runs before the first paint, so that no other theme is seen before the chosen one.
(() => {
  let theme = 'auto';
  try {
    theme = localStorage.getItem('theme') || 'auto';
  } catch {
    // Storage may be forbidden; the theme is then the system's.
  }
  document.documentElement.dataset.theme = theme === 'dark' || theme === 'light' ? theme : 'auto';
})();
