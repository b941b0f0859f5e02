const index = JSON.parse(document.getElementById('index').textContent);
const body = (name) => document.querySelector(`#${name} .body`);
document.getElementById('made').textContent = `made ${index.made}${index.live ? ', live' : ''}`;
drawResults(body('results'), index);
drawCurves(body('curves'), index.trainings);
drawData(body('data'), index.datasets);
drawSpeed(body('speed'), index);
drawAgain(body('again'), index);
// The chunks come after this script: wait for them.
document.addEventListener('DOMContentLoaded', async () => {
  if (index.left_out) document.getElementById('completions').append(element('p', {}, `${index.left_out.toLocaleString('en')} completions of older steps are left out.`));
  const browser = new Browser(index.completions);
  await browser.start();
  document.body.dataset.ready = 'yes';
});
if (index.live) {
  const key = 'scroll';
  window.scrollTo(0, Number(sessionStorage.getItem(key) || 0));
  setInterval(async () => {
    const now = await fetch('/version').then((x) => x.text()).catch(() => index.live);
    if (now !== index.live) { sessionStorage.setItem(key, String(window.scrollY)); location.reload(); }
  }, 5000);
}
