const index = JSON.parse(document.getElementById('index').textContent);
const body = (name) => document.querySelector(`#${name} .body`);
document.getElementById('made').textContent = `made ${index.made}${index.live ? ', live' : ''}`;
const notes = index.notes || [];
if (notes.length) {
  document.querySelector('main').prepend(element('ul', { id: 'notes', role: 'alert' }, ...notes.map((x) => element('li', {}, x))));
}
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
  if (index.live) follow(browser);
  document.body.dataset.ready = 'yes';
});
// A newer page is loaded by itself, unless somebody reads or filters: then on request.
function follow(browser) {
  const key = 'scroll', again = () => { sessionStorage.setItem(key, String(window.scrollY)); location.reload(); };
  window.scrollTo(0, Number(sessionStorage.getItem(key) || 0));
  setInterval(async () => {
    const now = await fetch('/version').then((x) => (x.ok ? x.text() : index.live)).catch(() => index.live);
    if (now === index.live || document.getElementById('newer')) return;
    if (!browser.busy()) { again(); return; }
    const button = element('button', { id: 'newer', type: 'button' }, 'Newer data: load it');
    button.addEventListener('click', again);
    document.getElementById('made').append(' ', button);
  }, 2000);
}
